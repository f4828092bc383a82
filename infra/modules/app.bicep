// The Flex Consumption plan and the function app on it.

param location string
param tags object
param planName string
param appName string
param identityId string
param identityClientId string
param subnetId string
param storageAccountName string
param packagesUrl string
param applicationInsightsName string
param pythonVersion string
param instanceMemoryMB int
param perInstanceConcurrency int
param alwaysReady array
param maximumInstanceCount int
param siteUpdateStrategy string

@description('The settings of the app itself; those of its host are added here.')
param settings object

// The host, its bindings and the ledger share one connection: the identity's. The prefix is what function_app.py names.
var hostSettings = {
  AzureWebJobsStorage__accountName: storageAccountName
  AzureWebJobsStorage__credential: 'managedidentity'
  AzureWebJobsStorage__clientId: identityClientId
  APPLICATIONINSIGHTS_CONNECTION_STRING: insights.properties.ConnectionString
  APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'ClientId=${identityClientId};Authorization=AAD'
}

resource insights 'Microsoft.Insights/components@2020-02-02' existing = {
  name: applicationInsightsName
}

resource plan 'Microsoft.Web/serverfarms@2025-05-01' = {
  name: planName
  location: location
  tags: tags
  kind: 'functionapp'
  sku: {
    name: 'FC1'
    tier: 'FlexConsumption'
  }
  properties: {
    reserved: true
  }
}

resource app 'Microsoft.Web/sites@2025-05-01' = {
  name: appName
  location: location
  tags: union(tags, { 'azd-service-name': 'app' })
  kind: 'functionapp,linux'
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${identityId}': {}
    }
  }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    publicNetworkAccess: 'Enabled'
    virtualNetworkSubnetId: subnetId
    keyVaultReferenceIdentity: identityId
    siteConfig: {
      minTlsVersion: '1.2'
    }
    functionAppConfig: {
      deployment: {
        storage: {
          type: 'blobContainer'
          value: packagesUrl
          authentication: {
            type: 'UserAssignedIdentity'
            userAssignedIdentityResourceId: identityId
          }
        }
      }
      runtime: {
        name: 'python'
        version: pythonVersion
      }
      scaleAndConcurrency: {
        instanceMemoryMB: instanceMemoryMB
        maximumInstanceCount: maximumInstanceCount
        alwaysReady: alwaysReady
        triggers: {
          http: {
            perInstanceConcurrency: perInstanceConcurrency
          }
        }
      }
      siteUpdateStrategy: {
        type: siteUpdateStrategy
      }
    }
  }
}

resource appSettings 'Microsoft.Web/sites/config@2025-05-01' = {
  parent: app
  name: 'appsettings'
  properties: union(settings, hostSettings)
}

// Packages come with an Entra token; passwords for publishing stay off.
resource passwords 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2025-05-01' = [for name in ['ftp', 'scm']: {
  parent: app
  name: name
  properties: {
    allow: false
  }
}]

output appName string = app.name
output hostName string = app.properties.defaultHostName
